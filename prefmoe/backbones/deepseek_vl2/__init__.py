"""DeepSeek-VL2 (Wu et al. 2024, arXiv 2412.10302), for which transformers has no class.

Class and tensor names are the published ones: a downloaded folder loads as it is, and none of its code is executed.
A saved folder has the published tensors beside a config.json in the manner of transformers.
"""

from prefmoe.backbones.deepseek_vl2.configuration import DeepseekVLV2Config
from prefmoe.backbones.deepseek_vl2.modeling import DeepseekVLV2ForCausalLM
from prefmoe.backbones.deepseek_vl2.processing import DeepseekVLV2Processor

__all__ = ["DeepseekVLV2Config", "DeepseekVLV2ForCausalLM", "DeepseekVLV2Processor"]
