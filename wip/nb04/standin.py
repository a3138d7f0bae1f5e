# local stand-ins, never committed
import shutil, hashlib, pathlib
root=pathlib.Path("/work/wt-nb04/data/models")
for d,name in ((4,"tiny-mamba2-d4"),(8,"tiny-mamba2"),(16,"tiny-mamba2-d16")):
    src=pathlib.Path(f"/tmp/grid/runs/mamba2-d_state{d}-taps4-seed1/model")
    for f in ("model.safetensors","config.json"):
        shutil.copy(src/f, root/name/f)
from ga_utils.models.loading import write_sums
for _,name in ((4,"tiny-mamba2-d4"),(8,"tiny-mamba2"),(16,"tiny-mamba2-d16")): write_sums(root/name)
