"""ARGS, many rows and candidates at once, against its definition read one row and one token at a time."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.alignment.args_decoding import ArgsDecoder, ArgsSettings, choose
from benchmarks.alignment.reward_model import RewardModel
from benchmarks.alignment.token_tree import ATTENTION
from models.sampling import uniform
from tests.tiny_models import make_model

PROMPTS = [[5, 9, 40], [7, 8, 9, 10, 11, 12, 13], [100]]
ROWS = [4, 0, 7]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("args")
    base = make_model(folder / "base", seed=1, sharpness=2.0)
    other = make_model(folder / "other", seed=2)

    def load(attention):
        torch.manual_seed(3)
        reward = RewardModel(AutoModelForCausalLM.from_pretrained(other, attn_implementation=attention).model, 32)
        return AutoModelForCausalLM.from_pretrained(base, attn_implementation=attention).eval(), reward.eval()

    return load


def plain_loop(base, reward, prompt, row, settings, new_tokens, seed, eos):
    """ARGS as its paper writes it, and log π − log π_base."""
    response, ratio = [], 0.0
    for position in range(new_tokens):
        logprobs = base(torch.tensor([prompt + response])).logits[0, -1].log_softmax(-1)
        top = logprobs.topk(settings.k)
        scores = []
        for logprob, token in zip(*top, strict=True):
            ids = torch.tensor([[*prompt, *response, int(token)]])
            scores.append(float(logprob + settings.weight * reward(ids, torch.ones_like(ids))))
        law = torch.tensor(scores).double().softmax(0)
        if settings.is_greedy:
            place, taken = int(torch.tensor(scores).argmax()), 1.0
        else:
            place = int((law.cumsum(0) > uniform(seed, row, 0, position)).nonzero()[0])
            taken = float(law[place])
        response.append(int(top.indices[place]))
        ratio += float(torch.tensor(taken).log() - top.values[place])
        if response[-1] in eos:
            break
    return response, ratio


@pytest.mark.parametrize("is_greedy", [True, False], ids=["greedy", "stochastic"])
def test_a_batch_decodes_as_each_row_does_alone(models, is_greedy):
    base, reward = models("sdpa")
    settings = ArgsSettings(weight=2.0, k=4, is_greedy=is_greedy)
    with torch.no_grad():
        expected = [
            plain_loop(base, reward, prompt, row, settings, 12, 3, {2, 50})
            for prompt, row in zip(PROMPTS, ROWS, strict=True)
        ]

    decoded = ArgsDecoder(*models(ATTENTION), base.config.vocab_size, {2, 50}).decode(PROMPTS, ROWS, settings, 12, 3)

    assert [one.tokens for one in decoded] == [tokens for tokens, _ in expected]
    assert [one.log_ratio for one in decoded] == pytest.approx([ratio for _, ratio in expected], abs=1e-4)


def test_a_row_ends_at_its_eos_and_the_others_go_on(models):
    base, reward = models(ATTENTION)
    settings = ArgsSettings(weight=0.0, k=4)
    decoder = ArgsDecoder(base, reward, base.config.vocab_size, {2})
    free = decoder.decode(PROMPTS, ROWS, settings, 8, 3)
    stop = free[0].tokens[2]
    assert stop not in free[0].tokens[:2]

    decoder.eos_ids = torch.tensor([stop])
    decoded = decoder.decode(PROMPTS, ROWS, settings, 8, 3)

    assert decoded[0].tokens == free[0].tokens[:3]
    for one, before in zip(decoded[1:], free[1:], strict=True):
        assert one.tokens == before.tokens[: len(one.tokens)]
    assert max(len(one.tokens) for one in decoded) > 3


def test_greedy_takes_the_best_candidate_for_certain_and_stochastic_reports_its_odds():
    scores = torch.tensor([[0.0, 2.0, 1.0], [1.0, 0.0, -50.0]])

    places, logprobs = choose(scores, torch.zeros(2).double(), is_greedy=True)
    assert places.tolist() == [1, 0]
    assert logprobs.tolist() == [0.0, 0.0]

    places, logprobs = choose(scores, torch.tensor([0.0, 0.99]).double(), is_greedy=False)
    assert places.tolist() == [0, 1]
    assert logprobs.tolist() == pytest.approx([float(scores[0].log_softmax(0)[0]), float(scores[1].log_softmax(0)[1])])
