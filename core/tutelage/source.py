"""The plugin base class of model sources: where a `prefix:name` in a recipe finds its model."""

from __future__ import annotations

from abc import abstractmethod

from tutelage.plugin import Plugin


class ModelSource(Plugin):
    """Plugin base: resolves `model: NAME_OF_SOURCE:reference` to what transformers and peft can load."""

    @abstractmethod
    def available(self, reference: str, place: str) -> None:
        """Check quickly, writing nothing and fetching nothing large, that `fetch` can succeed.

        Raises:
            TutelageError: naming `place` when there is no such model.
        """

    @abstractmethod
    def fetch(self, reference: str, place: str) -> str:
        """Make the model available here.

        Returns:
            a folder (of a Hugging Face model or a PEFT adapter), a `.gguf` file, or the name of a hub repository.
        Raises:
            TutelageError: naming `place` when it can't be had.
        """

    def held(self, reference: str) -> str:
        """What `fetch` would return, if nothing had to be fetched for that; else ''. Writes nothing."""
        return ""
