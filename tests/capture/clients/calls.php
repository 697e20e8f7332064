<?php
// The calls of PHP's curl and of its own streams that record.py records: `php calls.php CLIENT CALL`.

const API = 'https://api.example.org';

function curl(string $method, string $path, mixed $body = null, array $headers = []): void
{
    $handle = curl_init(API . $path);
    curl_setopt_array($handle, [CURLOPT_CUSTOMREQUEST => $method, CURLOPT_RETURNTRANSFER => true]);
    if ($body !== null) {
        curl_setopt($handle, CURLOPT_POSTFIELDS, $body);
    }
    curl_setopt($handle, CURLOPT_HTTPHEADER, $headers);
    curl_exec($handle);
}

function stream(string $method, string $path, ?string $body = null, string $headers = ''): void
{
    $http = ['method' => $method, 'content' => $body ?? '', 'header' => $headers];
    file_get_contents(API . $path, false, stream_context_create(['http' => $http]));
}

$json = ['Content-Type: application/json'];
$row = json_encode(['name' => 'Zoë', 'url' => 'https://x/']);
$calls = [
    'php-curl' => [
        'get' => fn () => curl('GET', '/v1/items?' . http_build_query(['q' => 'a b', 'f' => ['x' => 1, 'y' => [2]]])),
        'post_form' => fn () => curl('POST', '/v1/items', http_build_query(['a' => '1 2', 'b' => ['x', 'y']])),
        'post_json' => fn () => curl('POST', '/v1/items', $row, $json),
        'post_multipart' => fn () => curl('POST', '/v1/items', ['kind' => 'csv', 'file' => new CURLStringFile("a,b\n", 'ü.csv', 'text/csv')]),
        'put_3mb' => fn () => curl('PUT', '/v1/blobs/big', str_repeat('0123456789abcdef', 3 * 65536), ['Content-Type: application/octet-stream']),
    ],
    'php-stream' => [
        'get' => fn () => stream('GET', '/v1/items?q=a%20b'),
        'post_json' => fn () => stream('POST', '/v1/items', $row, "Content-Type: application/json\r\n"),
        'post_form' => fn () => stream('POST', '/v1/items', 'a=1+2', "Content-Type: application/x-www-form-urlencoded\r\n"),
        'delete' => fn () => stream('DELETE', '/v1/items/7'),
    ],
];
if (!isset($argv[2])) {
    echo implode("\n", array_keys($calls[$argv[1]])), "\n";
} else {
    $calls[$argv[1]][$argv[2]]();
}
