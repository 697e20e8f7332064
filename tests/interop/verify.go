// A log folder verified with golang.org/x/mod/sumdb: note for the checkpoints, tlog for tree, proofs and tiles.
//
//	verify LOG_FOLDER EARLIER_CHECKPOINT < proofs      (JSON {"<index>": "<tlog-proof>"})
//
// Prints the size and what was checked; any mistake is exit 1.
package main

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func check(err error, what string) {
	if err != nil {
		log.Fatalf("%s: %v", what, err)
	}
}

// open verifies a checkpoint and returns its tree.
func open(text []byte, verifier note.Verifier) tlog.Tree {
	opened, err := note.Open(text, note.VerifierList(verifier))
	check(err, "checkpoint")
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[0] != verifier.Name() {
		log.Fatalf("not a checkpoint: %q", opened.Text)
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	check(err, "size")
	return tlog.Tree{N: size, Hash: hash(lines[2])}
}

func hash(text string) (h tlog.Hash) {
	data, err := base64.StdEncoding.DecodeString(text)
	check(err, "hash")
	copy(h[:], data)
	return h
}

// tiles reads hash tiles from a folder; x/mod has the tile's height in its path, C2SP has not.
type tiles struct{ folder string }

func (tiles) Height() int                                  { return 8 }
func (tiles) SaveTiles(tiles []tlog.Tile, data [][]byte)   {}
func (r tiles) ReadTiles(wanted []tlog.Tile) ([][]byte, error) {
	var found [][]byte
	for _, tile := range wanted {
		path := strings.Replace(tile.Path(), "tile/8/", "tile/", 1)
		data, err := os.ReadFile(filepath.Join(r.folder, path))
		if err != nil {
			return nil, err
		}
		found = append(found, data)
	}
	return found, nil
}

func entries(folder string, size int64) (found [][]byte) {
	for n := int64(0); n*256 < size; n++ {
		width := size - n*256
		if width > 256 {
			width = 256
		}
		tile := tlog.Tile{H: 8, L: 0, N: n, W: int(width)}
		path := strings.Replace(tile.Path(), "tile/8/0/", "tile/entries/", 1)
		data, err := os.ReadFile(filepath.Join(folder, path))
		check(err, "bundle")
		for len(data) > 0 {
			length := int(binary.BigEndian.Uint16(data))
			found = append(found, data[2:2+length])
			data = data[2+length:]
		}
	}
	return found
}

func main() {
	folder := os.Args[1]
	vkey, err := os.ReadFile(filepath.Join(folder, "key.vkey"))
	check(err, "vkey")
	verifier, err := note.NewVerifier(strings.TrimSpace(string(vkey)))
	check(err, "vkey")
	text, err := os.ReadFile(filepath.Join(folder, "checkpoint"))
	check(err, "checkpoint")
	tree := open(text, verifier)

	reader := tlog.TileHashReader(tree, tiles{folder})
	leaves := entries(folder, tree.N)
	if int64(len(leaves)) != tree.N {
		log.Fatalf("%d entries, %d were signed", len(leaves), tree.N)
	}
	indexes := make([]int64, tree.N)
	for i := range indexes {
		indexes[i] = tlog.StoredHashIndex(0, int64(i))
	}
	hashes, err := reader.ReadHashes(indexes) // verifies every tile against the signed root
	check(err, "tiles")
	for i, leaf := range leaves {
		if tlog.RecordHash(leaf) != hashes[i] {
			log.Fatalf("entry %d is not its hash", i)
		}
	}

	earlierText, err := os.ReadFile(os.Args[2])
	check(err, "earlier checkpoint")
	earlier := open(earlierText, verifier)
	proof, err := tlog.ProveTree(tree.N, earlier.N, reader)
	check(err, "consistency")
	check(tlog.CheckTree(proof, tree.N, tree.Hash, earlier.N, earlier.Hash), "consistency")

	var proofs map[string]string
	check(json.NewDecoder(os.Stdin).Decode(&proofs), "proofs")
	for name, text := range proofs {
		index, err := strconv.ParseInt(name, 10, 64)
		check(err, "index")
		at := strings.Index(text, "\n\n")
		lines := strings.Split(text[:at], "\n")
		if lines[0] != "c2sp.org/tlog-proof@v1" || lines[1] != "index "+name {
			log.Fatalf("not the proof of %s", name)
		}
		var path tlog.RecordProof
		for _, line := range lines[2:] {
			path = append(path, hash(line))
		}
		signed := open([]byte(text[at+2:]), verifier)
		check(tlog.CheckRecord(path, signed.N, signed.Hash, index, tlog.RecordHash(leaves[index])), "inclusion")
	}
	fmt.Printf(`{"size": %d, "proofs": %d, "earlier": %d}`+"\n", tree.N, len(proofs), earlier.N)
}
