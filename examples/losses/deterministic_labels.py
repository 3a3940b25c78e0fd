"""Labels without doubt: DPO puts all mass on one answer and never stops, IPO keeps its distance.

The point of Azar et al. 2023 (arXiv 2310.12036), section 5: with labels that never contradict
each other, no beta holds DPO near the reference. Takes seconds on one core.
"""

import torch

import likelier

ANSWERS, RATE = 8, 0.5
STEPS = (100, 1_000, 10_000)
generator = torch.Generator().manual_seed(0)
REFERENCE = torch.log_softmax(torch.randn(ANSWERS, generator=generator).double(), 0)
better, worse = (i.flatten() for i in torch.triu_indices(ANSWERS, ANSWERS, offset=1))


def largest_and_drift(name: str, steps: int, **parameters: float) -> tuple[float, float]:
    """Largest probability and KL to the reference after some steps of gradient descent."""
    logits = REFERENCE.clone().requires_grad_()
    weight = (REFERENCE[better] + REFERENCE[worse]).exp()
    for _ in range(steps):
        logp = torch.log_softmax(logits, 0)
        loss = likelier.preference_loss(
            name, logp[better], logp[worse], REFERENCE[better], REFERENCE[worse],
            weight=weight, **parameters,
        ).sum()  # fmt: skip
        (slope,) = torch.autograd.grad(loss, logits)
        logits = (logits - RATE * slope).detach().requires_grad_()
    logp = torch.log_softmax(logits.detach(), 0)
    return float(logp.exp().max()), float((logp.exp() * (logp - REFERENCE)).sum())


if __name__ == "__main__":
    print(f"reference: largest probability {float(REFERENCE.exp().max()):.4f}")
    for name, parameters in (("sigmoid", {"beta": 0.5}), ("ipo_sum", {"tau": 0.5})):
        for steps in STEPS:
            largest, drift = largest_and_drift(name, steps, **parameters)
            print(f"{name:8} {steps:6} steps: largest {largest:.4f}, KL {drift:.3f}")
