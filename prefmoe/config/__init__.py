"""What a person may set: editions, the registry of backbones, where results lie (without torch)."""

from prefmoe.config.benchmarks import (
    ChoicesData,
    MiniatureData,
    MMPBData,
    PickAPicData,
    Seed,
)
from prefmoe.config.choice_methods import (
    FactorsMethod,
    LowRankMethod,
    NeighboursMethod,
    PersonalScorerMethod,
    PreferenceVQAMethod,
    PrototypesMethod,
    RaterMethod,
    ScorerMethod,
    ZeroShotMethod,
)
from prefmoe.config.edition import (
    CONFIG_FOLDER,
    DEFAULT_EDITION,
    FIGURES,
    KEEP_FREED_MEMORY,
    RESULTS,
    SEEDS,
    ControlKind,
    Edition,
    Evaluation,
    Histories,
    Methods,
    TooLong,
    Training,
    Turns,
    claim_results,
    known_editions,
    load_edition,
    run_folder,
)
from prefmoe.config.generation import (
    DrawingMethod,
    Generation,
    PlainDrawingMethod,
    ProbesMethod,
    RewardedMethod,
    UserTokensMethod,
    WrongUserMethod,
)
from prefmoe.config.injection import InjectedMethod
from prefmoe.config.method_settings import KINDS, Method, MethodSettings, is_trained
from prefmoe.config.methods import (
    COMPONENTS,
    FullFineTuningMethod,
    LoRAMethod,
    LOVA3Method,
    NonTunedMethod,
    PrefMoEMethod,
    Profile,
    SoftPromptMethod,
    TGLLaVAMethod,
    YoLLaVAMethod,
)
from prefmoe.config.rivals import (
    BesideLoRA,
    EmbeddingPrefixMethod,
    GraphExpertsMethod,
    HistoryMethod,
    JointTokensMethod,
    RetrievedMethod,
    UserLoRAMethod,
)
from prefmoe.config.strict import ConfigError, Setting
from prefmoe.system.places import ROOT
