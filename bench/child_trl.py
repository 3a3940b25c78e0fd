"""TRL as a measured process, in its own environment: python bench/child_trl.py CASE.json"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from child import Steps, hash_ids, peak_mib, tell, timed
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, __version__


class Told(DPOTrainer):
    """The trainer, keeping the unrounded loss of every micro-batch until the step ends."""

    losses: list[torch.Tensor]

    def training_step(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        loss = super().training_step(*arguments, **keywords)
        self.losses.append(loss.detach())
        return loss


class AtStepEnd(TrainerCallback):
    """Tells of every step, and lets the process wait for its next turn."""

    def __init__(self, steps: Steps):
        self.steps = steps
        self.trainer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.steps.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        loss = float(torch.stack(self.trainer.losses).sum())  # each is divided by their number
        self.trainer.losses.clear()
        self.steps.end(state.global_step, loss)


def main() -> None:
    """Run the case by TRL's DPOTrainer with the settings under "trl"."""
    case = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    settings = case["trl"]
    model: Any = AutoModelForCausalLM.from_pretrained(
        case["model"], dtype=getattr(torch, settings["weights"])
    )
    if case["adapter"]:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, case["adapter"], is_trainable=True)
    rows = [json.loads(line) for line in Path(case["visited"]).read_text("utf-8").splitlines()]
    optim = case["likelier"]["optim"]
    arguments = DPOConfig(
        output_dir=settings["out"],
        per_device_train_batch_size=settings["batch"],
        gradient_accumulation_steps=case["pairs_per_step"] // settings["batch"],
        precompute_ref_log_probs=settings["precompute"],
        max_steps=case["steps"],
        train_sampling_strategy="sequential",
        learning_rate=optim["lr"],
        lr_scheduler_type="constant",
        adam_beta1=optim["betas"][0],
        adam_beta2=optim["betas"][1],
        adam_epsilon=optim["eps"],
        weight_decay=optim["weight_decay"],
        max_grad_norm=optim["max_grad_norm"],
        beta=case["likelier"]["loss"]["beta"],
        max_length=case["likelier"]["data"]["max_length"],
        bf16=settings["autocast"],
        use_cpu=not torch.cuda.is_available(),  # without it, no bf16 on a CPU
        gradient_checkpointing=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    at_step_end = AtStepEnd(Steps())
    Told._precompute_ref_logps = timed("reference", Told._precompute_ref_logps)
    trainer = Told(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(case["model"]),
        callbacks=[at_step_end],
    )
    trainer.losses, at_step_end.trainer = [], trainer
    data = trainer.train_dataset
    columns = (data["prompt_ids"], data["chosen_ids"], data["rejected_ids"])
    tell(event="ids", hash=hash_ids(zip(*columns, strict=True)), trl=__version__)
    trainer.train()
    tell(event="peak", until="end", mib=peak_mib())


if __name__ == "__main__":
    main()
