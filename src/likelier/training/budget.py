"""How many tokens a pass may hold where the config leaves it open."""

import os

import torch

from likelier.model.load import Policy

_SHARE_OF_MEMORY = 0.25  # of all there is, not of what is free now: the same every time
_LEAST, _MOST = 1024, 16384


def tokens_per_pass(policy: Policy) -> int:
    """A power of two, from the memory of the device and what a token keeps for the backward.

    A decoder layer keeps about 16 values of the hidden size and 4 of the inner size a token.
    """
    config = policy.causal_lm.config.get_text_config()
    hidden = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    per_token = config.num_hidden_layers * (16 * hidden + 4 * inner)
    size = torch.empty(0, dtype=policy.causal_lm.dtype).element_size()
    fitting = _SHARE_OF_MEMORY * _memory(policy.device) / (per_token * size)
    return min(_MOST, max(_LEAST, 1 << int(fitting).bit_length() - 1))


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
