"""Built-in phases."""

from tutelage_plugins.phases.ai_feedback import AIFeedback
from tutelage_plugins.phases.comparisons import Comparisons
from tutelage_plugins.phases.critique_revision import CritiqueRevision
from tutelage_plugins.phases.dpo import DPO
from tutelage_plugins.phases.evaluation import Evaluation
from tutelage_plugins.phases.grpo import GRPO
from tutelage_plugins.phases.ppo import PPO
from tutelage_plugins.phases.pretrain import Pretrain
from tutelage_plugins.phases.ranking import Ranking
from tutelage_plugins.phases.reward_model import RewardModel
from tutelage_plugins.phases.sft import SFT

PHASES = (Pretrain, SFT, DPO, PPO, GRPO, Comparisons, RewardModel, Ranking, CritiqueRevision, AIFeedback, Evaluation)
