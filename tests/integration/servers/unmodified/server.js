// node with a listener that it is given; it ends as its documentation has it.
const big = ' '.repeat(500000);
const server = require('http').createServer((request, response) => {
  let size = 0;
  request.on('data', (part) => { size += part.length; });
  request.on('end', () => {
    const body = `app ${process.env.FDHANDOFF_GENERATION} ${size}` + (request.url === '/big' ? big : '');
    const answer = () => response.writeHead(200, {'Content-Length': body.length}).end(body);
    request.url.startsWith('/slow/') ? setTimeout(answer, 1000 * Number(request.url.slice(6))) : answer();
  });
});
server.listen({fd: 3});
process.on('SIGTERM', () => server.close(() => process.exit(0)));
