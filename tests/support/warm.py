"""Imported by the server that children are forked from: what each would do first, done once.

No tensor is computed here: threads of a library do not survive a fork.
"""

import peft  # noqa: F401
import pyarrow.parquet  # noqa: F401
import transformers.models.exaone4.modeling_exaone4  # noqa: F401
from transformers import conversion_mapping

import likelier.cli
import likelier.report.page
import likelier.run  # noqa: F401

conversion_mapping.get_checkpoint_conversion_mapping("exaone4")
