"""Run a notebook with errors allowed; dump outputs, pictures, and CPU seconds of each cell."""
import sys, nbformat, time, base64, pathlib, asyncio, os
from nbclient import NotebookClient
src,out=sys.argv[1:3]
nb=nbformat.read(src,4); pics=pathlib.Path("/tmp/b4/pics"); pics.mkdir(exist_ok=True)
for p in pics.glob("*.png"): p.unlink()
# cpu timing through a hook cell
hook=nbformat.v4.new_code_cell("import time as _t\n_ip=get_ipython()\n_ip.events.register('pre_run_cell',lambda i: globals().__setitem__('_c0',_t.process_time()))\n_ip.events.register('post_run_cell',lambda r: print(f'[[cpu {_t.process_time()-_c0:.1f}]]'))")
nb.cells.insert(0,hook)
cl=NotebookClient(nb,timeout=1500,allow_errors=True,resources={"metadata":{"path":"/work/main/notebooks"}})
t=time.time(); cl.execute(); print("wall",time.time()-t)
tot=0
with open(out,"w") as f:
    for i,c in enumerate(nb.cells[1:]):
        if c.cell_type!="code": continue
        f.write(f"\n=== [{i}] {c.id}\n")
        k=0
        for o in c.outputs:
            if o.output_type=="stream" and o.name=="stdout":
                txt=o.text
                import re
                for m in re.findall(r"\[\[cpu ([\d.]+)\]\]",txt): tot+=float(m)
                f.write(txt)
            elif o.output_type=="error": f.write("ERROR "+o.ename+": "+o.evalue+"\n"+"\n".join(o.traceback[-3:])[:1500]+"\n")
            elif "data" in o:
                if "image/png" in o.data:
                    (pics/f"{i:03d}_{c.id}_{k}.png").write_bytes(base64.b64decode(o.data["image/png"])); k+=1
                    f.write("[picture]\n")
                elif "text/plain" in o.data: f.write(o.data["text/plain"][:3000]+"\n")
    f.write(f"\ntotal cpu {tot:.0f}\n")
nb.cells.pop(0)
nbformat.write(nb,src+".out.ipynb")
