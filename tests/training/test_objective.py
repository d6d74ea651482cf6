"""The loss against a hand computation, the rewards against plain sums of log-probabilities."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from models.training.objective import CHUNK_TOKENS, fused_scores, preference_loss, sequence_rewards, token_logprobs
from tests.tiny_models import FAMILIES, make_model


def test_the_loss_of_two_pairs_by_hand():
    # β = 0.5: margins −1 − (−3) = 2 and −4 − (−2) = −2, so −log σ(1) = log(1 + 1/e) and −log σ(−1) = log(1 + e).
    chosen, rejected = torch.tensor([-1.0, -4.0]), torch.tensor([-3.0, -2.0])

    loss = preference_loss(chosen, rejected, beta=0.5)

    by_hand = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(1))) / 2
    assert loss.item() == pytest.approx(by_hand, abs=1e-6)
    assert by_hand == pytest.approx(0.8132617, abs=1e-6)


def test_the_gradient_of_the_loss_by_hand():
    # dL/d chosen = −β σ(−β margin): margin 0 gives −β/2.
    chosen = torch.zeros(1, requires_grad=True)

    preference_loss(chosen, torch.zeros(1), beta=0.1).backward()

    assert chosen.grad.item() == pytest.approx(-0.05, abs=1e-7)


def test_a_loss_of_a_huge_margin_stays_finite():
    loss = preference_loss(torch.tensor([0.0]), torch.tensor([1e5]), beta=1.0)

    assert loss.item() == pytest.approx(1e5)


@pytest.mark.parametrize("tokens", [1, CHUNK_TOKENS, 2 * CHUNK_TOKENS + 3])
def test_token_logprobs_and_their_gradients_are_those_of_log_softmax(tokens):
    torch.manual_seed(0)
    logits = (torch.randn(tokens, 11) * 4).requires_grad_()
    plain_logits = logits.detach().clone().requires_grad_()
    targets = torch.randint(11, (tokens,))

    logprobs = token_logprobs(logits, targets)
    plain = plain_logits.log_softmax(1)[torch.arange(tokens), targets]
    (logprobs * torch.linspace(1, 2, tokens)).sum().backward()
    (plain * torch.linspace(1, 2, tokens)).sum().backward()

    torch.testing.assert_close(logprobs, plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits.grad, plain_logits.grad, atol=1e-5, rtol=0)


def test_bfloat16_logits_are_summed_in_float32():
    logits = torch.zeros(1, 50_000, dtype=torch.bfloat16)

    assert token_logprobs(logits, torch.tensor([7])).item() == pytest.approx(-math.log(50_000), abs=1e-4)


@pytest.fixture
def batch():
    ids = torch.tensor([[5, 6, 7, 8, 9, 2], [5, 6, 10, 2, 0, 0], [11, 12, 13, 14, 2, 0]])
    attention = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 5 + [0]])
    response = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0]], dtype=torch.bool)
    return {"input_ids": ids, "attention_mask": attention, "response_mask": response}


def plain_rewards(model, batch, vocabulary_size):
    """Each row alone, without padding, a full log-softmax, and a loop over its response tokens."""
    rewards = []
    for ids, attention, response in zip(*batch.values(), strict=True):
        length = int(attention.sum())
        logprobs = model(ids[None, :length]).logits[0, :, :vocabulary_size].log_softmax(-1)
        rewards.append(sum(logprobs[t - 1, ids[t]] for t in range(1, length) if response[t]))
    return torch.stack(rewards)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_rewards_are_the_plain_sums_over_response_tokens(tmp_path, batch, family):
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "m", family, padding_rows=5)).eval()
    vocabulary_size = model.config.vocab_size - 5

    rewards = sequence_rewards(model, **batch, vocabulary_size=vocabulary_size)

    plain = plain_rewards(model, batch, vocabulary_size)
    torch.testing.assert_close(rewards, plain, atol=1e-5, rtol=1e-6)
    assert (plain_rewards(model, batch, vocabulary_size + 5) - plain).abs().max() > 1e-3  # padding rows matter


def trl_logps(model, batch, vocabulary_size):
    """The sums as TRL's DPO trainer takes them: the padded batch at once, shifted labels, a mask over the prompt."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[..., :vocabulary_size]
    labels, mask = batch["input_ids"].roll(-1, dims=1), batch["response_mask"].roll(-1, dims=1)
    selected = torch.gather(logits, dim=-1, index=labels.unsqueeze(-1)).squeeze(-1)
    per_token_logps = selected - torch.stack([torch.logsumexp(one, dim=-1) for one in logits])
    return (per_token_logps * mask).sum(-1)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_rewards_and_loss_are_those_of_log_probability_sums_as_trl_takes_them(tmp_path, batch, family):
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "m", family, padding_rows=5)).eval()
    pair = {name: tensor[:2] for name, tensor in batch.items()}
    vocabulary_size = model.config.vocab_size - 5

    rewards = sequence_rewards(model, **pair, vocabulary_size=vocabulary_size)
    chosen, rejected = rewards.unbind()

    expected = trl_logps(model, pair, vocabulary_size)
    torch.testing.assert_close(rewards, expected, atol=1e-5, rtol=0)
    loss = preference_loss(chosen[None], rejected[None], beta=0.05)
    margin = 0.05 * (expected[0] - expected[1]).item()
    assert loss.item() == pytest.approx(math.log1p(math.exp(-margin)), abs=1e-5)


def test_the_fused_loss_by_hand():
    # (−6 + 0.5 · −4) / 2 = −4 and (−9 + 0.5 · −6) / 4 = −3; β = 2, γ = 1: −log σ(2 · −1 − 1) = log(1 + e³).
    rewards, base = torch.tensor([-4.0, -6.0]), torch.tensor([-6.0, -9.0])

    chosen, rejected = fused_scores(rewards, base, torch.tensor([2, 4]), weight=0.5)
    loss = preference_loss(chosen[None], rejected[None], beta=2.0, margin=1.0)

    assert (chosen.item(), rejected.item()) == (-4.0, -3.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(3)), abs=1e-6)


def test_padding_and_prompt_tokens_carry_no_reward(tmp_path, batch):
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "m")).eval()
    other_padding = batch | {"input_ids": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 99)}

    rewards = sequence_rewards(model, **batch, vocabulary_size=model.config.vocab_size)

    torch.testing.assert_close(
        rewards, sequence_rewards(model, **other_padding, vocabulary_size=model.config.vocab_size), atol=1e-6, rtol=0
    )


def test_the_model_computes_full_logits_again_afterwards(tmp_path, batch):
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "m")).eval()

    sequence_rewards(model, **batch, vocabulary_size=model.config.vocab_size)

    assert model(batch["input_ids"]).logits.shape == (3, 6, model.config.vocab_size)
