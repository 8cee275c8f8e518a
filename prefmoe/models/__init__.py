"""Backbones, the user state, the mixture of LoRA experts, PrefMoE and its baselines."""
