"""Computing backends that were asked for and are not there."""

import os
import sys

_VARIABLES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")


def missing_backend() -> str | None:
    """Why JAX cannot start on what JAX_PLATFORMS asks for, in a sentence.

    Returns:
        None if it can, if nothing is asked for, or if JAX is not in use.
    """
    asked = [f"{name}={os.environ[name]}" for name in _VARIABLES if os.environ.get(name)]
    if not asked or "jax" not in sys.modules:
        return None
    import jax

    try:
        jax.devices()
    except Exception as error:  # JAX raises RuntimeError or AssertionError, with or without words
        words = str(error).strip().splitlines()
        reason = f" ({words[0]})" if words else ""
        return (
            f"{' '.join(asked)} asks for a backend that this machine or this installation of JAX "
            f"lacks{reason}; unset the variable, or install what it names."
        )
    return None


def left_out_backends() -> list[str]:
    """Names in JAX_PLATFORMS that JAX passed over because it found another one."""
    import jax

    missing = []
    for name in filter(None, os.environ.get("JAX_PLATFORMS", "").split(",")):
        try:
            jax.devices(name)
        except RuntimeError:
            missing.append(name)
    return missing
