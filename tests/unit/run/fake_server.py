"""A rollout server of no substance: answers what ptcli asks. `python fake_server.py PORT FOLDER`.

While FOLDER/stuck exists it answers nothing about its engine; while FOLDER/slow exists it is not healthy. SIGTERM ends
it unless FOLDER/stubborn exists; FOLDER/broken ends it before it serves. FOLDER/child has the pid of its child.
"""

import json
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CONFIG = {
    "weight_transfer_config": {"backend": "gloo"},
    "model_config": {"dtype": "torch.float32", "max_model_len": 128, "logprobs_mode": "processed_logprobs"},
    "parallel_config": {"tensor_parallel_size": 1, "data_parallel_size": 1},
}
FOLDER = Path(sys.argv[2])


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/health" and (FOLDER / "slow").exists():
            return self.answer({}, 503)
        if self.path == "/is_paused":
            while (FOLDER / "stuck").exists():
                time.sleep(0.1)
        answers = {
            "/v1/models": {"data": [{"id": "tiny"}]},
            "/server_info": {"vllm_config": CONFIG},
            "/get_world_size": {"world_size": 1},
        }
        return self.answer(answers.get(self.path.partition("?")[0], {}))

    def do_POST(self) -> None:
        self.answer({"choices": [{"text": "1"}]})

    def answer(self, body: object, status: int = 200) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


if (FOLDER / "stubborn").exists():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
engine = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(300)"], start_new_session=True)
(FOLDER / "child").write_text(f"{engine.pid}\n")
if (FOLDER / "broken").exists():
    raise RuntimeError("the model is too big")
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
