"""Agents in other languages: each takes a payment intent and an amount, and prints status and decision."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

JAVA = """
import java.net.URI;
import java.net.http.*;
public class Refund {
  public static void main(String[] a) throws Exception {
    var body = HttpRequest.BodyPublishers.ofString("payment_intent=" + a[0] + "&amount=" + a[1]);
    var ask = HttpRequest.newBuilder(URI.create("https://api.stripe.com/v1/refunds"))
      .header("Authorization", "Bearer sk_test_demo")
      .header("Content-Type", "application/x-www-form-urlencoded").POST(body).build();
    var said = HttpClient.newHttpClient().send(ask, HttpResponse.BodyHandlers.ofString());
    var decision = said.headers().firstValue("Holdgate-Decision").orElse("none  ");
    System.out.println(said.statusCode() + " " + decision.substring(0, 6));
  }
}
"""
GO = """
package main
import ("fmt"; "net/http"; "net/url"; "os"; "strings")
func main() {
  form := url.Values{"payment_intent": {os.Args[1]}, "amount": {os.Args[2]}}
  r, _ := http.NewRequest("POST", "https://api.stripe.com/v1/refunds", strings.NewReader(form.Encode()))
  r.Header.Set("Authorization", "Bearer sk_test_demo")
  r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
  s, err := http.DefaultClient.Do(r)
  if err != nil { fmt.Println(err); return }
  fmt.Println(s.StatusCode, s.Header.Get("Holdgate-Decision")[:6])
}
"""


def build(language: str, folder: Path) -> list[str]:
    """The command of a compiled program in `folder`. Skips where the toolchain is not there."""
    tool = shutil.which({"java": "javac", "go": "go"}[language])
    if tool is None:
        pytest.skip(f"needs {language}")
    if language == "java":
        source, text, to = folder / "Refund.java", JAVA, ["-d", str(folder)]
        command = ["java", "-cp", str(folder), "Refund"]
    else:
        source, text, to = folder / "refund.go", GO, ["-o", str(folder / "refund")]
        command = [str(folder / "refund")]
    source.write_text(text)
    words = [tool, *(["build"] if language == "go" else []), *to, str(source)]
    env = os.environ | {"GOFLAGS": "-mod=mod", "GO111MODULE": "off", "GOCACHE": str(folder / "cache")}
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return command
