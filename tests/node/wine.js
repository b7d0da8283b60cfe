"use strict";
/* What Node has to do without under Wine 8; tools/setup.py has every Node there load it first.

   net-ipc asks for keep-alive on each of its sockets before they are connected. libuv then sets
   TCP_KEEPIDLE, which Wine does not know, and drops the socket: no TCP client gets anywhere. */

const net = require("net");

net.Socket.prototype.setKeepAlive = function () {
	return this;
};
