"""Two nodes on this machine, each with an agent of torchrun: one dies and comes back, and nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import Popen

from forked import free_port
from helpers import ROOT
from runs import QUIET, SHAPE, assert_same_weights, losses

# Python tells of the folder that is about to be made for a checkpoint: then a node dies as a machine does,
# with the agent first, who would tell the other.
DYING = """
import os, runpy, signal, sys
folder, program = sys.argv[1:3]
def notice(name, arguments):
    if name == "os.mkdir" and folder in str(arguments[0]):
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
if os.environ.get("NODE_DIES"):
    sys.addaudithook(notice)
del sys.argv[:2]
runpy.run_path(program, run_name="__main__")
"""
MOST_SECONDS = 240


def node(script: Path, port: int, options: list[str], host: bool = False, dies: bool = False) -> Popen:
    """An agent with one process. host: who has the list of nodes, and must live."""
    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=test"]
    meeting += [f"--rdzv-conf=is_host={host},last_call_timeout=1,keep_alive_interval=1"]
    meeting += ["--local-addr=127.0.0.1"]
    launcher = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--max-restarts=3"]
    program = [str(script), "step-0000010.aside", str(ROOT / "train.py"), os.devnull, *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # docs/training.md says why
    environment |= {"NODE_DIES": "1"} if dies else {}
    with script.with_name(f"{'host' if host else 'other'}.log").open("a") as log:
        line = [sys.executable, *launcher, *meeting, *program]
        return Popen(line, env=environment, stdout=log, stderr=subprocess.STDOUT)


def test_a_node_that_dies_comes_back_and_the_run_ends_equal(data, alone, tmp_path):
    script, out = tmp_path / "dying.py", tmp_path / "out"
    script.write_text(DYING)
    options = [f"--data={data}", f"--out_dir={out}", *SHAPE, *QUIET, "--max_steps=20", "--save_interval=5"]
    place = (script, free_port(), [*options, "--auto_resume"])
    host, other = node(*place, host=True), node(*place, dies=True)
    try:
        assert other.wait(MOST_SECONDS) == -signal.SIGKILL
        assert host.poll() is None
        other = node(*place)
        codes = [process.wait(MOST_SECONDS) for process in (host, other)]
        assert codes == [0, 0], (tmp_path / "host.log").read_text()[-3000:]
    finally:
        for process in (host, other):
            process.terminate()  # and with it what it runs
            process.wait()
    assert losses(out).keys() == losses(alone).keys()
    assert_same_weights(alone, out, atol=1e-5)
