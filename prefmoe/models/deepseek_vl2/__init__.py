"""DeepSeek-VL2 (Wu et al. 2024, arXiv 2412.10302), which transformers has no class for: model, configuration, processor.

Class names, configuration and tensor names on disk are the published ones, so that a downloaded folder loads as it is
and a saved one can be read by others. No code of such a folder is ever executed.
"""

from prefmoe.models.deepseek_vl2.configuration import DeepseekVLV2Config
from prefmoe.models.deepseek_vl2.modeling import DeepseekVLV2ForCausalLM
from prefmoe.models.deepseek_vl2.processing import DeepseekVLV2Processor

__all__ = ["DeepseekVLV2Config", "DeepseekVLV2ForCausalLM", "DeepseekVLV2Processor"]
