"""Programs that a model wrote, each in a container of the real image: what they can't do."""

import pytest

from evalkit.host import sandbox
from evalkit.host.launch import runtimes
from evalkit.host.sandbox import Limits

pytestmark = pytest.mark.image
PROGRAMS = {
    "def more(x):\n    return x + 1\nassert more(1) == 2": "passed",
    "print('said', flush=True)": "passed",
    "import os; assert os.getuid() != 0": "passed",
    "import os; assert not [n for n in os.listdir('/home') if n]": "passed",
    "assert 1 == 2": "failed",
    "def (": "failed",
    "import os; os._exit(0)": "failed",  # it did not come to its end
    "raise SystemExit(0)": "failed",
    "import socket; socket.create_connection(('1.1.1.1', 53), 2)": "failed",
    "open('/tmp/x', 'w').write('x')": "failed",
    "open('/dev/shm/x', 'w').write('x')": "failed",
    "open('/var/cache/evalkit/x', 'w').write('x')": "failed",
    "x = bytearray(3 << 30)": "failed",
    "import os\nfor _ in range(500): os.fork() or os._exit(0)": "failed",
    "while True: pass": "timed out",
    "import signal, time\nsignal.signal(14, signal.SIG_IGN)\ntime.sleep(60)": "timed out",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_runs_alone_and_can_touch_nothing(program: str, image: str) -> None:
    place = runtimes.choose("docker", image)
    assert place.runtime is not None and place.image is not None
    outcome = sandbox.run(place.runtime, place.image, program, Limits(3))
    assert outcome == PROGRAMS[program]
