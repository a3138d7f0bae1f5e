"""dev.py [ids...]: run changed cells (and those named, or 'all') in a kernel that stays alive."""
import sys, json, os, subprocess, time, base64, queue, nbformat
from jupyter_client import BlockingKernelClient
W="/tmp/nb05work"; CF=f"{W}/kernel.json"; ST=f"{W}/state.json"
if not os.path.exists(CF) or "restart" in sys.argv:
    if os.path.exists(CF): os.remove(CF)
    if os.path.exists(ST): os.remove(ST)
    p=subprocess.Popen([sys.executable,"-m","ipykernel_launcher","-f",CF],cwd="/work/wt-nb05/notebooks",start_new_session=True,stdout=open(f"{W}/kernel.log","w"),stderr=subprocess.STDOUT)
    open(f"{W}/kernel.pid","w").write(str(p.pid))
    while not os.path.exists(CF): time.sleep(.2)
    time.sleep(2)
kc=BlockingKernelClient(connection_file=CF); kc.load_connection_file(); kc.start_channels(); kc.wait_for_ready(timeout=120)
state=json.load(open(ST)) if os.path.exists(ST) else {}
nb=nbformat.read("/work/wt-nb05/notebooks/05_hybrid_head_replacement.ipynb",4)
want=set(sys.argv[1:])
def run(code):
    t=time.time(); mid=kc.execute("import time as _t; _c=_t.process_time()\n"+code if False else code)
    outs=[]
    while True:
        m=kc.get_iopub_msg(timeout=1500)
        if m["parent_header"].get("msg_id")!=mid: continue
        k,c=m["msg_type"],m["content"]
        if k=="status" and c["execution_state"]=="idle": break
        if k in("stream","execute_result","display_data","error"): outs.append((k,c))
    return outs,time.time()-t
def cpu():
    outs,_=run("import time as _t; print(_t.process_time())"); return float(outs[0][1]["text"])
c0=cpu(); total=0
for cell in nb.cells:
    if cell.cell_type!="code": continue
    if state.get(cell.id)==cell.source and cell.id not in want and "all" not in want: continue
    outs,d=run(cell.source); c1=cpu(); used=c1-c0; c0=c1; total+=used
    print(f"## {cell.id} cpu {used:.1f}s wall {d:.0f}s",flush=True)
    bad=False
    for k,c in outs:
        if k=="stream" and c["name"]=="stdout": print(c["text"].rstrip())
        elif k=="error": print("ERROR","\n".join(c["traceback"])[-1800:]); bad=True
        elif "data" in c:
            d_=c["data"]
            if "image/png" in d_: open(f"{W}/png_{cell.id}.png","wb").write(base64.b64decode(d_["image/png"])); print("PNG")
            elif "text/plain" in d_: print(d_["text/plain"])
    sys.stdout.flush()
    if bad: break
    state[cell.id]=cell.source; json.dump(state,open(ST,"w"))
print("cpu total",total)
