"""A page in headless chromium, over its debugging pipe: nothing but the browser itself is needed."""

import fcntl
import json
import os
import shutil
import signal
import time
from contextlib import contextmanager

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe")


class Page:
    """One open page.  Messages are JSON texts that end in a zero byte."""

    def __init__(self, to, answers):
        self.to, self.answers, self.number, self.rest = to, answers, 0, b""
        self.session = None

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        os.write(self.to, json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                self.rest += os.read(self.answers, 1 << 16)
            text, _, self.rest = self.rest.partition(b"\0")
            answer = json.loads(text)
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def run(self, script):
        """The value of an expression; a promise is waited for."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")


@contextmanager
def opened(path, profile, width=1600):
    """A page in a window of 900 pixels' height, closed with its browser at the end."""
    commands, to = os.pipe()
    answers, back = os.pipe()
    theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (commands, back)]
    os.close(commands)
    os.close(back)
    quiet = os.open(os.devnull, os.O_WRONLY)
    files = [
        (os.POSIX_SPAWN_DUP2, fd, number) for fd, number in zip((*theirs, quiet, quiet), (3, 4, 1, 2), strict=True)
    ]
    browser = os.posix_spawn(
        BROWSER,
        [BROWSER, *FLAGS, f"--window-size={width},900", f"--user-data-dir={profile}"],
        os.environ,
        file_actions=files,
    )
    for fd in (*theirs, quiet):
        os.close(fd)
    try:
        page = Page(to, answers)
        target = page.call("Target.createTarget", url=path.as_uri())["targetId"]
        page.session = page.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        end = time.monotonic() + 60
        while page.run("document.readyState") != "complete" or page.run("typeof ready") == "undefined":
            assert time.monotonic() < end, "the page does not finish loading"
            time.sleep(0.05)
        yield page
    finally:
        os.kill(browser, signal.SIGTERM)
        os.waitpid(browser, 0)
        os.close(to)
        os.close(answers)
