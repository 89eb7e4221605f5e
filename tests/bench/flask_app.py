"""The peer of the benchmark: the same iris predict behind Flask and waitress, as python3-http has it.

Arguments: BUNDLE PORT
"""

import os
import sys

from flask import Flask, request
from waitress import serve

bundle, port = sys.argv[1], int(sys.argv[2])
os.chdir(bundle)
sys.path.insert(0, bundle)

import main  # noqa: E402

main.init()
app = Flask(__name__)


@app.route("/", methods=["POST"])
def call():
    return main.predict(request.get_data(as_text=True)), 200, {"Content-Type": "text/plain; charset=utf-8"}


serve(app, host="127.0.0.1", port=port)
