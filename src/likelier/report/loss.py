"""What the report must know of a run's loss: what its rewards are scaled by and compared with."""

from likelier.losses.declare import LOSSES
from likelier.report.read import RunFolder, number, section


def reads_reference(run: RunFolder) -> bool:
    """Whether rewards are against a reference; otherwise they are beta times the log-prob."""
    loss = section(run.config, "loss")
    parts = loss["parts"] if isinstance(loss.get("parts"), list) else [loss]
    names = [str(part.get("name", "sigmoid")) for part in parts if isinstance(part, dict)]
    losses = [LOSSES[name] for name in names if name in LOSSES]
    return not losses or any(loss.reads("reference") for loss in losses)


def reward_scale(run: RunFolder) -> float | None:
    """What a log-ratio is multiplied by to be the logged reward, None where it is not known."""
    loss = section(run.config, "loss")
    parts = loss.get("parts")
    if isinstance(parts, list) and parts and isinstance(parts[0], dict):
        loss = parts[0]
    known = LOSSES.get(str(loss.get("name", "sigmoid")))
    if known is None:
        return number(loss.get("beta"))
    return number(loss.get(known.reward)) if known.reward else 1.0


def starts_at_ln2(run: RunFolder) -> bool:
    """Whether a policy that is its reference has a loss of ln 2: plain DPO alone."""
    loss = section(run.config, "loss")
    return loss.get("name") == "sigmoid" and set(loss) <= {"name", "beta", "divergence", "alpha"}
