<?php
// A guestbook: entries are written to the leader and read from a follower, in Redis' own protocol.

function redis(string $host, array $words) {
    $socket = @fsockopen($host, 6379, $code, $text, 3);
    if (!$socket) {
        throw new RuntimeException("$host: $text");
    }
    $request = '*' . count($words) . "\r\n";
    foreach ($words as $word) {
        $request .= '$' . strlen($word) . "\r\n$word\r\n";
    }
    fwrite($socket, $request);
    return answer($socket);
}

function answer($socket) {
    $line = fgets($socket);
    if ($line === false) {
        throw new RuntimeException('no answer');
    }
    $line = rtrim($line, "\r\n");
    $rest = substr($line, 1);
    switch ($line[0]) {
        case '-':
            throw new RuntimeException($rest);
        case '$':
            $length = (int) $rest;
            return $length < 0 ? null : substr(stream_get_contents($socket, $length + 2), 0, $length);
        case '*':
            $items = [];
            for ($i = 0; $i < (int) $rest; $i++) {
                $items[] = answer($socket);
            }
            return $items;
        default:
            return $rest;
    }
}

try {
    if ($_SERVER['REQUEST_METHOD'] === 'POST' && ($_POST['entry'] ?? '') !== '') {
        redis('redis-leader', ['RPUSH', 'guestbook', $_POST['entry']]);
        header('Location: /', true, 303);
        exit;
    }
    $entries = redis('redis-follower', ['LRANGE', 'guestbook', '0', '-1']);
} catch (RuntimeException $error) {
    http_response_code(502);
    exit(htmlspecialchars($error->getMessage()));
}
?>
<!doctype html>
<title>Guestbook</title>
<h1>Guestbook</h1>
<form method="post">
  <input name="entry" placeholder="Say something" autofocus>
  <button>Submit</button>
</form>
<ul id="entries">
<?php foreach ($entries as $entry): ?>
  <li><?= htmlspecialchars($entry) ?></li>
<?php endforeach ?>
</ul>
<p>served by <?= htmlspecialchars(gethostname()) ?></p>
