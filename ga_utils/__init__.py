"""How language models retrieve from their context: find, watch and disable Gather and Aggregate heads.

The paper: Bick, Xing, Gu, "Understanding the Skill Gap in Recurrent Language Models: The Role of the
Gather-and-Aggregate Mechanism", ICML 2025, arXiv 2504.18574.

| symbol | in words | in the code |
|---|---|---|
| L16H22 | head 22 of layer 16, both counted from 0 | `Head(16, 22)` |
| G&A | Gather-and-Aggregate: two heads in series that retrieve | `gather_score`, `aggregate_score` |
| Gather head | condenses a segment of the context into the segment's last token | `gather_score` |
| Aggregate head | lets the last token pick the right segment | `aggregate_score` |
| segment | one option or pair: a line of the prompt that ends in a newline | `segments` |
| z | a head's output before `out_proj`, [batch, pos, n_heads * d_head] | input of `Mixer.out_proj` |
| disable, ablate | replace a head's z by zeros, a mean, or another prompt's z | `ablate` |
| patch | let a head write what it wrote at another position, or on another prompt | `patch` |
| steer | let a head's last row look where you say | `steer` |
| state, h | what an SSM head keeps of the text so far, [d_head, d_state] | `read_state`, `patch_state` |
| short convolution | mixes each token with the few before it, in front of the scan | `ablate_conv` |
| minimal model | the first N layers, up to and including the Aggregate layer | `truncate` |
| pattern, A | attention weights [n_heads, query, key] | `attention_map` |
| implicit attention | an SSM as a matrix over positions; *hidden attention* in Ali et al. | `attention_map` |
| SSD, L ∘ (C Bᵀ) | Mamba-2's scan: the decays L, elementwise times C Bᵀ | `ssm.Scan.matrix` |
| d_state | numbers an SSM head remembers for each of its channels | `ssm.Scan.B`, last axis |
| KV retrieval, n_pairs | look up one key of a random dictionary | `tasks.kv_retrieval` |
| minimal pair | two prompts that differ only in what is asked about | notebook 02 |
| hybrid | a model with attention in some layers and SSMs in others | `replace_layer`, `mask_last_row` |
| sharpness | 1: all attention on one key; 0: spread evenly | `sharpness` |
| 95 % interval | Wilson score interval of an accuracy | `Score.ci95` |
"""

import os

# OpenMP's threads spin while they wait for one another, which keeps a busy machine from its work (README of
# the package). torch reads this once, so it is set before the first import of torch; a value of yours wins.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from IPython.display import Markdown

from ga_utils import checks, plots, tasks
from ga_utils.attention import (
    aggregate_score,
    attention_map,
    gather_score,
    option_shares,
    scan,
    shares,
    sharpness,
)
from ga_utils.doctor import doctor
from ga_utils.examples import Example
from ga_utils.heads import Head, ablate, alive_heads, keep_only, mask_last_row, skip_layers, truncate
from ga_utils.hybrid import replace_head, replace_layer
from ga_utils.models.kernels import install_kernels
from ga_utils.models.lm import LM, Mixer, load_model, reset, wrap
from ga_utils.models.loading import runs
from ga_utils.patch import patch, patch_state, read_state, steer
from ga_utils.roles import Roles, find_roles
from ga_utils.scoring import Score, evaluate
from ga_utils.segments import positions, segments
from ga_utils.ssm import ablate_conv
from ga_utils.sweeps import sweep_heads, sweep_layers
from ga_utils.sweeps.results import HeadSweep, LayerSweep
from ga_utils.tasks.harness import lm_eval
from ga_utils.views.circuitsvis import attention_view
from ga_utils.views.predict import Guess, predict
from ga_utils.views.steering import steer_view
from ga_utils.views.widgets import attention_beside, head_explorer, sweep_view


def glossary() -> Markdown:
    """The table of the course's words that `help(ga)` begins with."""
    return Markdown("\n".join(line for line in __doc__.splitlines() if line.startswith("|")))


__all__ = [
    "Example",
    "Guess",
    "Head",
    "HeadSweep",
    "LM",
    "LayerSweep",
    "Mixer",
    "Roles",
    "Score",
    "ablate",
    "ablate_conv",
    "aggregate_score",
    "alive_heads",
    "attention_beside",
    "attention_map",
    "attention_view",
    "checks",
    "doctor",
    "evaluate",
    "find_roles",
    "gather_score",
    "glossary",
    "head_explorer",
    "install_kernels",
    "keep_only",
    "lm_eval",
    "load_model",
    "mask_last_row",
    "option_shares",
    "patch",
    "patch_state",
    "plots",
    "positions",
    "predict",
    "read_state",
    "replace_head",
    "replace_layer",
    "reset",
    "runs",
    "scan",
    "segments",
    "shares",
    "sharpness",
    "skip_layers",
    "steer",
    "steer_view",
    "sweep_heads",
    "sweep_layers",
    "sweep_view",
    "tasks",
    "truncate",
    "wrap",
]
