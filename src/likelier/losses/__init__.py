"""Preference losses, one file a family; importing this package registers all of them."""

from importlib import import_module

# In the order in which `likelier losses` lists them.
for _family in ("pairwise", "pointwise", "per_token", "stepwise"):
    import_module(f"likelier.losses.{_family}")
