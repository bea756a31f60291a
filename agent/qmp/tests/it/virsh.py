#!/usr/bin/env python3
"""A `virsh` for one domain whose QEMU has two QMP sockets to spare: one for commands, one for
events. Prints what the real one prints; writes each call's arguments to a log."""
import json
import pathlib
import socket
import sys

HERE = pathlib.Path(__file__).parent
DOMAIN = "web'; echo $HOME \"one"


def fail(text):
    sys.exit("error: " + text)


class Qmp:
    def __init__(self, name):
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            self.socket.connect(str(HERE / name))
        except OSError:
            fail("Requested operation is not valid: domain is not running")
        self.lines = self.socket.makefile("rw")
        self.lines.readline()
        self.command({"execute": "qmp_capabilities"})

    def command(self, message):
        message["id"] = "libvirt-7"
        print(json.dumps(message), file=self.lines, flush=True)
        while line := self.lines.readline():
            answer = json.loads(line)
            if "id" in answer:
                return answer
        fail("Unable to read from monitor: Connection reset by peer")


def main(words):
    with open(HERE / "virsh.log", "a") as log:
        print(json.dumps(words), file=log)
    if words[0] == "--connect":
        words = words[2:]
    subcommand, option, domain, *more = words
    if option != "--domain" or domain != DOMAIN:
        fail(f"failed to get domain '{domain}'")
    if subcommand == "qemu-monitor-command":
        print(json.dumps(Qmp("qmp2").command(json.loads(more[0]))))
    elif subcommand == "qemu-monitor-event":
        for line in Qmp("qmp3").lines:
            event = json.loads(line)
            stamp = "{seconds}.{microseconds:06}".format(**event["timestamp"])
            details = json.dumps(event["data"]) if "data" in event else "(null)"
            print(f"event {event['event']} at {stamp} for domain '{domain}': {details}", flush=True)
    elif subcommand == "qemu-agent-command":
        answers = {"guest-ping": {}, "guest-fsfreeze-freeze": 2, "guest-fsfreeze-thaw": 2}
        print(json.dumps({"return": answers[json.loads(more[-1])["execute"]]}))
    elif subcommand == "domname":
        print(domain + "\n")
    elif subcommand == "domstate":
        print("running\n")
    elif subcommand == "dumpxml":
        print("<domain type='qemu'/>")
    elif subcommand == "domblklist":
        print(" Type   Device   Target   Source")
        print("-" * 40)
        print(" file   disk     vda      /images/with space.qcow2")
        print(" file   cdrom    sda      -\n")
    else:
        fail(f"unknown command: '{subcommand}'")


main(sys.argv[1:])
