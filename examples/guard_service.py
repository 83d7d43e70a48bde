"""A guard behind HTTP, with ``fastadv[serve]``: ``uvicorn examples.guard_service:app``, or run to ask itself twice."""

import http.client
import json
import socket
import threading
import time

import uvicorn

import fastadv as fa
from fastadv.detection.service import create_app

model = fa.load("synth-vgg")
faces = fa.data.render_faces([*range(32)] * 2, [20] * 32 + [22] * 32, seed=3)  # two images of each person
attacked = fa.attack("pgd", model, faces.images, eps=8 / 255, steps=10)
config = fa.detection.FitConfig(kind="mlp", epochs=50)
detector = fa.detection.fit(model, faces.images, attacked.images, labels=faces.identities, config=config)
app = create_app(fa.Guard(model=model, detector=detector))  # a FastAPI application; see /docs

if __name__ == "__main__":
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    client = http.client.HTTPConnection(*listening.getsockname())

    def ask(method, path, body=None):
        client.request(method, path, body, {"Content-Type": "image/png"})
        return json.load(client.getresponse())

    while "status" not in ask("GET", "/readyz"):  # the guard warms up
        time.sleep(0.05)
    for kind, image in (("natural", faces.images[0]), ("attacked", attacked.images[0])):
        face = ask("POST", "/v1/faces", fa.data.encode_png(fa.data.to_uint8(image)))["faces"][0]
        print(f"{kind}: flagged {face['flagged']}, p-value {face['p_value']:.3f}, score {face['score']:.2f}")
    client.close()
    server.should_exit = True
    thread.join()
