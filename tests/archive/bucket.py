"""A server that speaks S3, with one bucket: moto's, whose objects outlive kill -9.

Google's XML protocol is the same but for the names of a few headers, which are understood too.

bucket.py FOLDER PORT

Each object is a file of the folder as well, written before the answer to the request is sent. Uploads that are
under way are lost with the process.
"""

import os
import sys
from urllib.parse import quote, unquote

from moto.core import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import WSGIRequestHandler, run_simple

BUCKET, UNFINISHED = "bucket", "~"
folder, port = sys.argv[1], int(sys.argv[2])
backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]


def keep(key):
    """Makes the file of an object as the object is."""
    path = os.path.join(folder, quote(key, safe=""))
    found = backend.get_object(BUCKET, key)
    if found is None:
        if os.path.exists(path):
            os.remove(path)
        return
    with open(path + UNFINISHED, "wb") as file:
        file.write(found.value)
    os.replace(path + UNFINISHED, path)


def application(environ, start_response):
    if "HTTP_X_GOOG_COPY_SOURCE" in environ:
        environ["HTTP_X_AMZ_COPY_SOURCE"] = environ.pop("HTTP_X_GOOG_COPY_SOURCE")
    if environ.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", None) == "0":
        environ["HTTP_IF_NONE_MATCH"] = "*"
    answer = list(moto(environ, start_response))
    key = environ["PATH_INFO"].strip("/").partition("/")[2]
    if environ["REQUEST_METHOD"] in ("PUT", "POST", "DELETE"):
        if key:
            keep(key)
        else:
            # Several at once, which it names in its body.
            for name in os.listdir(folder):
                keep(unquote(name.removesuffix(UNFINISHED)))
    return answer


class Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_):
        pass


backend.create_bucket(BUCKET, "us-east-1")
for name in os.listdir(folder):
    if not name.endswith(UNFINISHED):
        with open(os.path.join(folder, name), "rb") as file:
            backend.put_object(BUCKET, unquote(name), file.read())
moto = DomainDispatcherApplication(create_backend_app)
run_simple("127.0.0.1", port, application, threaded=True, request_handler=Quiet)
