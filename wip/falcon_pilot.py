import sys, torch; torch.set_num_threads(1)
from pathlib import Path
from dataclasses import replace
from ga_utils.training.recipes import *
from ga_utils.training.stages import *
from ga_utils.training.untrained import *
from ga_utils.training.untrained import _vocabulary
from ga_utils.training.loop import *
from transformers import FalconMambaConfig, FalconMambaForCausalLM
name,layers,ds,lm_,steps=sys.argv[1],int(sys.argv[2]),int(sys.argv[3]),int(sys.argv[4]),int(sys.argv[5])
tok=world_tokenizer()
config = FalconMambaConfig(hidden_size=128, num_hidden_layers=layers, state_size=ds, **_vocabulary(tok))
torch.manual_seed(1); m=FalconMambaForCausalLM(config); relate_embeddings(m,tok)
if lm_: lengthen_memory(m)
st=[replace(s,rows=10) for s in SSM_STAGES]; st[3]=replace(st[3],steps=steps-1150)
state=TrainingState(m,optimizers(m,3e-3),Path("runs")/name)
with fast_scans(): train(state,st,3e-3,"grid-1",Writer(tok),cooldown=600)
save(m,tok,Path("out")/name)
