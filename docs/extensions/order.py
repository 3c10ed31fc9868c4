"""The order of the gallery: what is asked first, first."""

from pathlib import Path

EXAMPLES = (
    "idea_in_two_dimensions",
    "label_noise",
    "m_from_one_to_batch",
    "how_flat",
    "landscape",
    "lightning_module",
    "hugging_face_trainer",
    "small_language_model",
    "sweep",
    "variant_of_your_own",
    "diagonal_networks",
    "relu_kinks",
)


class InOrder:
    """Sorts scripts by their place in ``EXAMPLES``; one that has none is an error."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, name: str) -> int:
        """The place of a file."""
        return EXAMPLES.index(Path(name).stem)
