"""An engine that answers at once, except where a prompt asks for something else. As a program: a worker with it."""

import os
import signal
import sys
import threading
from concurrent.futures import Future

from models.completion import Completion
from models.errors import DeviceLostError, ModelNotFoundError, ModelsError, RowError

HOLD = "hold"
"""A row with this prompt stays in the engine until `release` is called."""
REFUSE = "refuse"
BREAK = "break"
UNSTORABLE = "unstorable"
"""The completion of a row with this prompt is one that no database takes."""
DIE = "die"
END = "end"
"""A row with this prompt ends the engine."""
MISSING_BASE = "no/such-model"
LOST_DEVICE = "lost/device"


class FakeEngine:
    """Models are names; the completion of a prompt is the prompt backwards."""

    def __init__(self, settings=None):
        self.held = []
        self.loads = []
        self.submitted = []
        self.changed = threading.Condition()
        self.ended = threading.Event()

    def start(self):
        self.stopped = False
        threading.Thread(target=self.ended.wait, name="engine", daemon=True).start()

    def stop(self):
        self.stopped = True
        self.end()

    def end(self):
        self.ended.set()
        for _, future in self.held:
            future.cancel()

    def load(self, spec, give_up):
        self.loads.append(spec)
        if spec.base == MISSING_BASE:
            raise ModelNotFoundError(f"no model {spec.base!r}: give a hub id or a folder")
        if spec.base == BREAK:
            raise ModelsError("a bug")
        if spec.base == LOST_DEVICE:
            raise DeviceLostError("the device fails at everything")
        return spec

    def hold(self, guided):
        return True

    def let_go(self, guided):
        pass

    def submit(self, guided, row):
        future = Future()
        with self.changed:
            self.submitted.append(row)
            if row.prompt == HOLD:
                self.held.append((row, future))
            self.changed.notify_all()
        if row.prompt == END:
            self.end()
        if self.ended.is_set():
            future.cancel()
        elif row.prompt == REFUSE:
            future.set_exception(RowError("prompt_too_long", "the prompt has 9 tokens, the context 8"))
        elif row.prompt == BREAK:
            future.set_exception(RuntimeError("a bug"))
        elif row.prompt == DIE:
            os.kill(os.getpid(), signal.SIGKILL)
        elif row.prompt != HOLD:
            future.set_result(completions(guided, row))
        return future

    def release(self):
        """Finish the rows that are held."""
        with self.changed:
            held, self.held = self.held, []
        for row, future in held:
            if future.set_running_or_notify_cancel():
                future.set_result(completions(None, row))

    def wait_for_held(self, count, seconds=10):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.held) >= count, seconds)


def completions(spec, row):
    samples = spec.samples if spec else 1
    text = row.prompt[::-1]
    tokens = [ord(letter) for letter in text]
    logprobs = [-0.5] * len(tokens)
    return [
        Completion(
            sample=sample,
            text=text,
            finish_reason="\ud800" if row.prompt == UNSTORABLE else "stop",
            tokens=tokens,
            logprobs=logprobs,
            base_logprobs=logprobs,
            token_rewards=dict.fromkeys(row.weights, logprobs),
            prompt_tokens=len(row.prompt),
        )
        for sample in range(samples)
    ]


if __name__ == "__main__":
    from worker.__main__ import main

    sys.exit(main(sys.argv[1:], FakeEngine))
