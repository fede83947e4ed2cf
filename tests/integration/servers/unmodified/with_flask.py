"""For ``flask run``, which takes only a Flask application."""

from flask import Flask
from wsgi import app as answers

app = Flask(__name__)
app.wsgi_app = answers
