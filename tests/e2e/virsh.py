#!/usr/bin/env -S python3 -I -S
"""A `virsh` that knows one domain, `web`: `QMP` and `EVENTS` are sockets of its QEMU's monitors,
`QGA` is its guest agent's. Prints what the real one prints."""
import json
import os
import socket
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def fail(text):
    sys.exit("error: " + text)


def connect(name):
    peer = socket.socket(socket.AF_UNIX)
    try:
        peer.connect(os.path.join(HERE, name))
    except OSError:
        fail("Requested operation is not valid: domain is not running")
    return peer


class Qmp:
    def __init__(self, name):
        self.lines = connect(name).makefile("rw")
        if not self.lines.readline():
            fail("Unable to read from monitor: Connection reset by peer")
        self.command({"execute": "qmp_capabilities"})

    def command(self, message):
        message["id"] = "libvirt-1"
        print(json.dumps(message), file=self.lines, flush=True)
        while line := self.lines.readline():
            answer = json.loads(line)
            if "id" in answer:
                return answer
        fail("Unable to read from monitor: Connection reset by peer")


def guest_agent(message):
    lines = connect("QGA").makefile("rw")
    print(message, file=lines, flush=True)
    return lines.readline()


def main(words):
    subcommand, option, domain, *more = words
    if option != "--domain" or domain != "web":
        fail(f"failed to get domain '{domain}'")
    if subcommand == "qemu-monitor-command":
        print(json.dumps(Qmp("QMP").command(json.loads(more[0]))))
    elif subcommand == "qemu-monitor-event":
        for line in Qmp("EVENTS").lines:
            event = json.loads(line)
            stamp = "{seconds}.{microseconds:06}".format(**event["timestamp"])
            details = json.dumps(event["data"]) if "data" in event else "(null)"
            print(f"event {event['event']} at {stamp} for domain '{domain}': {details}", flush=True)
    elif subcommand == "qemu-agent-command":
        print(guest_agent(more[-1]))
    elif subcommand == "domname":
        print(domain + "\n")
    elif subcommand == "domstate":
        connect("QMP")
        print("running\n")
    elif subcommand == "dumpxml":
        print(open(os.path.join(HERE, "web.xml")).read())
    else:
        fail(f"unknown command: '{subcommand}'")


main(sys.argv[1:])
