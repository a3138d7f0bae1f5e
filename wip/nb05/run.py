import sys, time, base64, os, nbformat, asyncio
from nbclient import NotebookClient
src, out = sys.argv[1], sys.argv[2]
nb=nbformat.read(src,4)
os.makedirs(out,exist_ok=True)
t={}
def start(cell, cell_index): t[cell_index]=time.time()
def done(cell, cell_index, execute_reply):
    d=time.time()-t[cell_index]
    t[cell_index]=d
    if d>1.5: print(f"{d:6.1f}s cell {cell_index} {cell.get('id')}", flush=True)
c=NotebookClient(nb,timeout=900,resources={"metadata":{"path":"notebooks"}},on_cell_execute=start,on_cell_executed=done,allow_errors=True)
t0=time.time(); c.execute(); print("total",time.time()-t0)
n=0
for i,cell in enumerate(nb.cells):
    if cell.cell_type!="code": continue
    for o in cell.outputs:
        if o.output_type=="error": print("ERROR",i,cell.id,"\n".join(o.traceback)[-1500:])
        if o.get("name")=="stderr": continue
        if "text" in o: print(f"[{i} {cell.id}]", o["text"].rstrip())
        d=o.get("data",{})
        if "image/png" in d:
            n+=1; open(f"{out}/{n:02d}_{cell.id}.png","wb").write(base64.b64decode(d["image/png"])); print(f"[{i} {cell.id}] PNG {n}")
        elif "text/plain" in d: print(f"[{i} {cell.id}]", d["text/plain"])
nbformat.write(nb,f"{out}/out.ipynb")
