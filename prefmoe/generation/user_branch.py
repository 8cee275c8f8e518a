"""The drawer's branch for users: attention over a user's tokens beside the text's, as IP-Adapter has it for pictures.

Keys and values are diffusers' (`IPAdapterAttnProcessor2_0`); its equation is

    attended = attention(q, K text, V text) + attention(q, K' user, V' user).

V' begins at zero, so that a branch that has learned nothing draws as if there were no user. Neither V' nor K' has a
bias, so that tokens of zeros are nobody, whatever was learned.
"""

import hashlib
import json
from operator import itemgetter

import torch
from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import MultiIPAdapterImageProjection
from torch import nn

from prefmoe.generation.drawer import Drawer


def add_user_branch(drawer: Drawer, tokens: int = 4, seed: int = 0) -> nn.ModuleDict:
    """Gives a drawer a branch for users, or, if it has one, a new one in its place; nothing else of it is trained.

    Args:
        tokens: of a user, at most; a smaller number may be given as well.
        seed: of the keys; values begin at zero.

    Returns:
        what is to be trained: name of an attention of the U-Net -> its processor.
    """
    unet = drawer.unet
    unet.requires_grad_(False)
    drawer.text_encoder.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    processors, branch = {}, {}
    for name, present in unet.attn_processors.items():
        attention = unet.get_submodule(name.removesuffix(".processor"))
        if not attention.is_cross_attention:
            processors[name] = present
            continue
        one = IPAdapterAttnProcessor2_0(attention.inner_dim, unet.config.cross_attention_dim, num_tokens=(tokens,))
        one.to(unet.device, unet.dtype)
        with torch.no_grad():
            (keys,), (values,) = one.to_k_ip, one.to_v_ip
            keys.weight.copy_(torch.randn(keys.weight.shape, generator=generator) * keys.in_features**-0.5)
            values.weight.zero_()
        processors[name] = branch[name.removesuffix(".processor").replace(".", "/")] = one
    unet.set_attn_processor(processors)
    # How diffusers hands a second kind of token to these processors; here they come in the right width already.
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([nn.Identity()])
    unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
    return nn.ModuleDict(branch)


def remove_user_branch(drawer: Drawer) -> None:
    """Makes a drawer one without users again."""
    drawer.unet.set_attn_processor(AttnProcessor2_0())
    drawer.unet.encoder_hid_proj = None
    drawer.unet.register_to_config(encoder_hid_dim_type=None)


def drawer_digest(drawer: Drawer) -> str:
    """Identifies a drawer, whatever branch it has: weights, words, scheduler and the size of patches."""
    said = hashlib.blake2b(digest_size=8)
    words = sorted(drawer.tokenizer.get_vocab().items(), key=itemgetter(1))
    settings = {key: value for key, value in drawer.scheduler.config.items() if not key.startswith("_")}
    said.update(json.dumps([drawer.config.patch, words, settings], sort_keys=True, default=str).encode())
    for network in (drawer.unet, drawer.text_encoder):
        for name, tensor in sorted(network.state_dict().items()):
            if "_ip." not in name:
                said.update(name.encode())
                said.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return said.hexdigest()
