"""PrefMoE companion: user state, losses, mixture of LoRA experts, benchmark and evaluation."""

__version__ = "0.1.0"
