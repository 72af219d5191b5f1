import pytest

from forgetmenot.plugins import PACKAGE_ROOT, extract_class
from forgetmenot.train.options import Options


def test_options_can_be_read_without_importing_the_module() -> None:
    extracted = extract_class(PACKAGE_ROOT / "train" / "options.py")
    assert vars(extracted(steps=7)) == vars(Options(steps=7))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", 0),
        ("accumulate", 0),
        ("learning_rate", 0.0),
        ("min_lr_ratio", 1.5),
        ("sparsity_alpha", 1.0),
        ("weight_decay", -0.1),
        ("sparsity_lambda_min", 2.0),
        ("warmup_steps", 1000),
        ("betas", (0.9, 1.0)),
        ("precision", "fp16"),
        ("target_kept", 0),
        ("router_freeze", 1.1),
        ("lambda_shared", "group"),
    ],
)
def test_a_bad_value_is_named_with_what_was_found(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key) as error:
        Options(**{key: value})  # type: ignore[arg-type]
    assert str(value) in str(error.value)
    assert "allowed" in str(error.value)
