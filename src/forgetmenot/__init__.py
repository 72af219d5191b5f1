"""A reproducibility pipeline for two papers on forgetting in fixed-size memories."""

from forgetmenot import hf_hook

__version__ = "0.1.0"

hf_hook.install()


def autoload() -> None:
    """What torch calls when it loads its plugins (entry point group `torch.backends`).

    Programs that know nothing of this package, such as `lm_eval --model hf`, import it so, and
    importing it is all there is to do.
    """
