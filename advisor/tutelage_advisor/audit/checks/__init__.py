"""The built-in data checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tutelage_advisor.audit.checks.answers import Boilerplate, CutAnswer, EmptyAnswer, Refusals
from tutelage_advisor.audit.checks.bias import Counterfactuals, GroupImbalance, Stereotypes
from tutelage_advisor.audit.checks.consistency import AnswerFormat, Labels
from tutelage_advisor.audit.checks.diversity import Diversity
from tutelage_advisor.audit.checks.duplicates import Contradictions, ExactDuplicates, Leakage, NearDuplicates
from tutelage_advisor.audit.checks.languages import Languages
from tutelage_advisor.audit.checks.lengths import OutlyingLengths, TooLong
from tutelage_advisor.audit.checks.licence import Licence
from tutelage_advisor.audit.checks.personal import PersonalData, Secrets
from tutelage_advisor.audit.checks.production import UnlikeProduction
from tutelage_advisor.audit.checks.shape import Malformed, MixedFormats, Roles
from tutelage_advisor.audit.checks.toxicity import Toxicity

if TYPE_CHECKING:
    from tutelage.datacheck import DataCheck

CHECKS: tuple[type[DataCheck], ...] = (
    Malformed,
    Roles,
    MixedFormats,
    EmptyAnswer,
    CutAnswer,
    ExactDuplicates,
    NearDuplicates,
    Contradictions,
    Leakage,
    AnswerFormat,
    Labels,
    OutlyingLengths,
    TooLong,
    Languages,
    Diversity,
    UnlikeProduction,
    Boilerplate,
    Refusals,
    PersonalData,
    Secrets,
    Toxicity,
    Stereotypes,
    GroupImbalance,
    Counterfactuals,
    Licence,
)
