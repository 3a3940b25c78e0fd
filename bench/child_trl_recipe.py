"""TRL trains what a config file of its own says: python bench/child_trl_recipe.py CASE.json"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from child import Steps, hash_ids, tell
from child_trl import AtStepEnd, Told
from datasets import Dataset
from transformers import AutoTokenizer
from trl import DPOConfig, ModelConfig, ScriptArguments, TrlParser, __version__, get_peft_config
from trl.scripts.utils import DatasetMixtureConfig


def main() -> None:
    """Read the file as `trl dpo --config` does, train, and tell the loss of every step.

    A fresh adapter is saved before the first step, so that another trainer can begin with it.
    """
    case = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    parser = TrlParser((ScriptArguments, DPOConfig, ModelConfig, DatasetMixtureConfig))
    keys = sorted(action.dest for action in parser._actions if action.dest != "help")
    _, arguments, model, _ = parser.parse_args_and_config(["--config", case["config"]])
    arguments.model_init_kwargs = {"dtype": model.dtype}
    rows = [json.loads(line) for line in Path(case["visited"]).read_text("utf-8").splitlines()]
    at_step_end = AtStepEnd(Steps())
    trainer = Told(
        model=case["model"],
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(case["model"]),
        peft_config=get_peft_config(model),
        callbacks=[at_step_end],
    )
    trainer.losses, at_step_end.trainer = [], trainer
    adapter: dict[str, Any] | None = None
    if model.use_peft:
        trainer.model.save_pretrained(case["adapter"])
        lora = trainer.model.peft_config["default"]
        scale = lora.lora_alpha / (lora.r**0.5 if lora.use_rslora else lora.r)
        adapter = {"r": lora.r, "scale": scale, "modules": sorted(_modules(trainer.model))}
    data = trainer.train_dataset
    ids = hash_ids(zip(data["prompt_ids"], data["chosen_ids"], data["rejected_ids"], strict=True))
    tell(event="trains", ids=ids, trl=__version__, adapter=adapter, keys=keys)
    trainer.train()


def _modules(model: Any) -> set[str]:
    """The modules that an adapter was put on."""
    names = (name for name, _ in model.named_parameters() if ".lora_A." in name)
    return {name.partition(".lora_A.")[0].rpartition("model.")[2] for name in names}


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
