import subprocess
import sys

RUN = """
import sys
sys.argv = ["upnext", "run", "nosuch.yaml"]
from pipeline.cli import main
try:
    main()
finally:
    print([name for name in ("tensorflow", "apache_beam") if name in sys.modules])
"""


def test_a_file_that_is_not_there_is_said_before_the_libraries_are_loaded() -> None:
    ended = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: configuration 'nosuch.yaml': no such file")
    assert ended.stdout.strip() == "[]"
