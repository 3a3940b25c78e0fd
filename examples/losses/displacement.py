"""Both answers fall while the margin grows: likelihood displacement in one vector.

The point of Razin et al. 2024 (arXiv 2410.08847), section 3: "No" is preferred over "Never", whose
outputs are nearly the same; the way to part them raises a third word. The head is frozen, one
hidden vector is trained. Takes seconds on one core.
"""

import torch

import likelier

WORDS = ("No", "Never", "Yes", "Maybe")
HEAD = torch.tensor([[1.0, 0.10], [1.0, -0.05], [-0.6, 3.0], [0.0, -0.5]], dtype=torch.float64)
START = torch.tensor([3.0, -0.3], dtype=torch.float64)
STEPS, RATE = 2000, 2.0
LOSSES = {
    "DPO": ("sigmoid", 0.0, {"beta": 0.1}),
    "DPO + NLL": ("sigmoid", 1.0, {"beta": 0.1}),
    "DPOP": ("dpop", 0.0, {"beta": 0.1, "penalty": 50.0}),
    "NCA": ("nca", 0.0, {"beta": 0.1}),
}


def moved(name: str, nll: float, **parameters: float) -> tuple[list[float], float]:
    """Probabilities of the words after training, and the log-ratio margin."""
    reference = torch.log_softmax(HEAD @ START, 0)
    hidden = START.clone().requires_grad_()
    for _ in range(STEPS):
        logp = torch.log_softmax(HEAD @ hidden, 0)
        loss = likelier.preference_loss(
            name, logp[0], logp[1], reference[0], reference[1], **parameters
        )
        (slope,) = torch.autograd.grad(loss - nll * logp[0], hidden)
        hidden = (hidden - RATE * slope).detach().requires_grad_()
    logp = torch.log_softmax(HEAD @ hidden.detach(), 0)
    margin = float((logp - reference)[0] - (logp - reference)[1])
    return logp.exp().tolist(), margin


if __name__ == "__main__":
    start = torch.softmax(HEAD @ START, 0).tolist()
    print(f"{'start':10}", *(f"{w} {p:.4f}" for w, p in zip(WORDS, start, strict=True)))
    for label, (name, nll, parameters) in LOSSES.items():
        found, margin = moved(name, nll, **parameters)
        told = [f"{w} {p:.4f}" for w, p in zip(WORDS, found, strict=True)]
        print(f"{label:10}", *told, f"margin {margin:.2f}")
