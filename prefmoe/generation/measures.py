"""What is noted of a drawn picture: what a reader sees in it, what a rater says of it, where it lies among drawings."""

import pandas as pd
import torch
from torch import Tensor, nn

from prefmoe.data.choice_drawing import ATTRIBUTES
from prefmoe.generation.drawer import DrawerError
from prefmoe.generation.judging import judged
from prefmoe.generation.pictures import as_bytes
from prefmoe.generation.reader import AttributeReader
from prefmoe.models.lora import merged_lora
from prefmoe.models.raters import Rater

FEATURE_SEED = 1234
"""Of the convolutions in whose features distances are measured: drawn once, never trained."""

REWARD_DRAW = 1
"""The history that the rewarding rater reads; pictures are drawn after that of draw 0."""


def noted(asked: pd.DataFrame, pictures: Tensor, *, reader: AttributeReader, rater: Rater, n_ref: int) -> pd.DataFrame:
    """The columns that `prefmoe.analysis.drawings` reads, beside those of the requests.

    Args:
        asked: as `prefmoe.generation.drawing.requests` makes it. pictures: (N, 3, S, S) in [0, 1].
        rater: trained apart from what drew. n_ref: choices in the history that it reads.

    Raises DrawerError if a picture is not finite.
    """
    if not pictures.isfinite().all():
        bad = int((~pictures.flatten(1).isfinite().all(1)).nonzero()[0])
        which = ", ".join(map(str, asked.iloc[bad]))
        raise DrawerError(f"picture {bad} ({which}) is not finite: NaN latents or weights")
    chances = reader.probabilities(pictures)
    columns = {}
    for name, values in ATTRIBUTES.items():
        columns |= {f"p_{value}": chances[name][:, k].numpy() for k, value in enumerate(values)}
    columns |= {f"f_{k}": feature.numpy() for k, feature in enumerate(random_features(pictures).T)}
    columns["reward"] = reward(rater, asked, pictures, n_ref=n_ref).numpy()
    columns["picture"] = [picture.tobytes() for picture in as_bytes(pictures)]
    return pd.concat([asked, pd.DataFrame(columns, index=asked.index)], axis=1)


@torch.inference_mode()
def reward(rater: Rater, asked: pd.DataFrame, pictures: Tensor, *, n_ref: int) -> Tensor:
    """Q = softmax(M+, M-)[+] of every picture after a history of its user, (N,)."""
    with merged_lora(rater.model):
        return judged(rater, asked, pictures, n_ref=n_ref, draw=REWARD_DRAW).softmax(-1)[:, 0].cpu()


@torch.inference_mode()
def random_features(pictures: Tensor) -> Tensor:
    """Means and spreads of the responses of random convolutions, (N, 96): nothing in them was trained on anything."""
    with torch.random.fork_rng([]):
        torch.manual_seed(FEATURE_SEED)
        network = nn.Sequential(
            nn.Conv2d(3, 24, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(24, 48, 3, stride=2, padding=1), nn.ReLU()
        )
    responses = network(2 * pictures - 1)
    return torch.cat([responses.mean((2, 3)), responses.std((2, 3))], 1)
