"""Where torch computes."""

import torch


def use_threads(count: int) -> None:
    """Give torch ``count`` threads."""
    torch.set_num_threads(count)


def device() -> torch.device:
    """The GPU when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
