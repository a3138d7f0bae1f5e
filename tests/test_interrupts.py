"""A notebook's sweep, stopped by the kernel's Interrupt or Restart button and run again: in real Jupyter
kernels.
"""

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from jupyter_client import KernelManager
from sweeping import committed

# A learner's cells, with one addition: a word for each piece that is begun.
SETUP = """
import hashlib
import ga_utils as ga
from ga_utils import sweeps

class Loud(sweeps.ExactSweep):
    def __call__(self, piece):
        print("piece", flush=True)
        return super().__call__(piece)

def digest(*arrays):
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()

sweeps.ExactSweep = Loud
lm = ga.load_model("tiny-llama")
examples = ga.tasks.mmlu(lm, n=100)
print("answers", digest(ga.evaluate(lm, examples).logprobs))
"""
SWEEP = """
found = ga.sweep_heads(lm, examples, checkpoint={})
print("result", digest(found.accuracy, found.logprob, found.baseline.logprobs))
"""
EVALUATE = 'print("answers", digest(ga.evaluate(lm, examples).logprobs))'
PIECES = 21  # the baseline and 5 layers of 4 heads


class Kernel:
    """What a notebook's page is to its kernel."""

    def __init__(self):
        self.manager = KernelManager()
        folder = str(Path(__file__).parent.parent)
        path = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.manager.start_kernel(env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"})
        self.connect()

    def connect(self):
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def run(self, code: str, stop_at: int = 0, stop=None) -> str:
        """Run a cell to its end, and return what it printed, with an error's name; or do `stop` when the
        cell begins its piece number `stop_at`, and return if that has put an end to the kernel."""
        cell, text = self.client.execute(code), ""
        while True:
            message = self.client.get_iopub_msg(timeout=60)
            if message["parent_header"].get("msg_id") != cell:
                continue
            content = message["content"]
            text += content.get("text", "") + content.get("ename", "")
            if stop and text.count("piece") >= stop_at:
                stop, stopped = None, stop()
                if stopped == "dead":
                    return text
            if content.get("execution_state") == "idle":
                return text

    def interrupt(self):
        time.sleep(0.03)  # to the middle of the piece, where the model is least like itself
        self.manager.interrupt_kernel()

    def restart(self):
        self.client.stop_channels()
        self.manager.restart_kernel(now=True)
        self.connect()
        return "dead"

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def kernel():
    kernel = Kernel()
    yield kernel
    kernel.close()


@pytest.fixture(scope="module")
def undisturbed(kernel):
    """The answers of the model and the result of a sweep that nobody stops."""
    answers, result = kernel.run(SETUP), kernel.run(SWEEP.format(None))
    assert result.count("piece") == PIECES
    return re.search(r"answers \w+", answers)[0], re.search(r"result \w+", result)[0]


@pytest.mark.parametrize("at", [1, 12])
def test_an_interrupted_cell_run_again_goes_on_where_it_was(at, kernel, undisturbed, tmp_path):
    answers, result = undisturbed
    path = tmp_path / "sweep.sqlite"
    cell = SWEEP.format(repr(str(path)))
    output = kernel.run(cell, at, kernel.interrupt)
    assert output.endswith("KeyboardInterrupt") and "result" not in output
    kept = committed(path)
    assert at - 1 <= kept < PIECES - 1
    assert answers in kernel.run(EVALUATE)
    output = kernel.run(cell)
    assert result in output and output.count("piece") == PIECES - kept
    assert answers in kernel.run(EVALUATE)


def test_without_a_file_an_interrupted_cell_begins_anew(kernel, undisturbed):
    answers, result = undisturbed
    output = kernel.run(SWEEP.format(None), 8, kernel.interrupt)
    assert output.endswith("KeyboardInterrupt") and "result" not in output
    assert answers in kernel.run(EVALUATE)
    output = kernel.run(SWEEP.format(None))
    assert result in output and output.count("piece") == PIECES


def test_a_restarted_kernel_goes_on_where_the_last_one_was(kernel, undisturbed, tmp_path):
    answers, result = undisturbed
    path = tmp_path / "sweep.sqlite"
    cell = SWEEP.format(repr(str(path)))
    output = kernel.run(cell, 6, kernel.restart)
    assert "result" not in output
    assert "NameError" in kernel.run(cell), "the kernel should have forgotten everything"
    kept = committed(path)
    assert 5 <= kept < PIECES - 1
    assert answers in kernel.run(SETUP)
    output = kernel.run(cell)
    assert result in output and output.count("piece") == PIECES - kept


def test_kernels_at_once_share_one_file_and_the_models_folder(kernel, undisturbed, tmp_path):
    """Both begin at the same moment; each gets the whole result."""
    answers, result = undisturbed
    path = tmp_path / "sweep.sqlite"
    cell = SWEEP.format(repr(str(path)))
    other = Kernel()
    try:
        assert answers in other.run(SETUP)
        with ThreadPoolExecutor(2) as at_once:
            assert all(result in output for output in at_once.map(lambda k: k.run(cell), [kernel, other]))
    finally:
        other.close()
    assert committed(path) == PIECES and [file.name for file in tmp_path.iterdir()] == ["sweep.sqlite"]
