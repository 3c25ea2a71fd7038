"""What the comparisons with lm-eval share: models, a warm Hub, and lm-eval's index of its tasks."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sides


@pytest.fixture(scope="session", autouse=True)
def one_index() -> Iterator[None]:
    """lm-eval's index of its own 14,000 tasks takes ten seconds to read and is always the same:
    read it once for both sides of every comparison."""
    import lm_eval.tasks

    original = lm_eval.tasks.TaskManager
    shared = cache(original)

    def manager(**arguments: Any) -> Any:
        return original(**arguments) if arguments else shared()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm_eval.tasks, "TaskManager", manager)
        yield


@pytest.fixture(scope="session")
def hf_model() -> Callable[[Path], Any]:
    """lm-eval's `hf` model of a folder, loaded once."""
    return cache(sides.load)


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers and stops (`models.talker`)."""
    import models

    return models.talker(tmp_path_factory.mktemp("talker") / "talker")
