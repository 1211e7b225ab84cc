"""What the interactive loop says, in English and Portuguese."""

import locale
import os

NOT_TAUGHT = "nothing in the catalogue resembles this: the model was not taught such a product"
SAID = {
    "en": {
        "begin": "(/help: what can be typed; sair, quit or Ctrl-D to leave)",
        "ask": "\nTitle or question> ",
        "help": """Type a title or a question. Commands:
  /before            the last one again, by the model before training and by the trained one
  /again             another answer to the last one
  /sources [K]       list products that the answer can be checked against; without K on and off
  /temp X            how daring: 0 always the likeliest word, 0.7 calm, 1 as learned
  /candidates N      tries at each answer, of which the truest is kept
  /adapter [NAME]    the adapters; or go on with another one, by its number, run or folder
  /save FILE         all answers so far, as JSONL
  /stats             the model, and how fast it writes
  sair, quit, Ctrl-D leave; Ctrl-C stops an answer""",
        "unknown": "{0} is no command{1}. /help lists them.",
        "nothing": "There is no answer yet: type a title.",
        "stopped": "\n(stopped; Ctrl-C again or Ctrl-D leaves)",
        "before": "before: ",
        "after": "after:  ",
        "number": "{0} takes a number {1}, as in {0} {2}.",
        "greedy": "Answers are the likeliest ones now, always the same. /temp 0.8 draws others.",
        "temp": "Temperature {0}.",
        "candidates": "{0} tries at each answer.",
        "no judge": "There is no catalogue to judge several tries by.",
        "adapter": "Now with {0}.",
        "no adapters": "This model has no adapters: start with --adapter FOLDER.",
        "file": "/save takes the name of a new file, as in /save answers.jsonl.",
        "there": "{0} is there already: name another.",
        "saved": "{0} answers saved in {1}.",
        "stats": "{0}: {1:,} parameters, {2} on {3}. {4} answers, {5:.1f} a minute; the last took {6:.1f} s. "
        "Temperature {7}, {8} tries.",
        "unsupported": "(nothing supports: {0})",
        "not taught": f"({NOT_TAUGHT})",
    },
    "pt": {
        "begin": "(/help: o que se pode digitar; sair, quit ou Ctrl-D para sair)",
        "ask": "\nTítulo ou pergunta> ",
        "help": """Digite um título ou uma pergunta. Comandos:
  /before            o último de novo, pelo modelo antes do treino e pelo treinado
  /again             outra resposta ao último
  /sources [K]       lista produtos com que conferir a resposta; sem K liga e desliga
  /temp X            ousadia: 0 sempre a palavra mais provável, 0.7 calma, 1 como aprendida
  /candidates N      tentativas para cada resposta; fica a mais verdadeira
  /adapter [NOME]    os adaptadores; ou continua com outro, por número, treino ou pasta
  /save ARQUIVO      todas as respostas até aqui, em JSONL
  /stats             o modelo, e quão rápido escreve
  sair, quit, Ctrl-D saem; Ctrl-C para uma resposta""",
        "unknown": "{0} não é um comando{1}. /help mostra quais há.",
        "nothing": "Ainda não há resposta: digite um título.",
        "stopped": "\n(parado; Ctrl-C de novo ou Ctrl-D sai)",
        "before": "antes:  ",
        "after": "depois: ",
        "number": "{0} pede um número {1}, como em {0} {2}.",
        "greedy": "As respostas agora são as mais prováveis, sempre iguais. /temp 0.8 sorteia outras.",
        "temp": "Temperatura {0}.",
        "candidates": "{0} tentativas para cada resposta.",
        "no judge": "Não há catálogo para julgar várias tentativas.",
        "adapter": "Agora com {0}.",
        "no adapters": "Este modelo não tem adaptadores: comece com --adapter PASTA.",
        "file": "/save pede o nome de um arquivo novo, como em /save respostas.jsonl.",
        "there": "{0} já existe: dê outro nome.",
        "saved": "{0} respostas salvas em {1}.",
        "stats": "{0}: {1:,} parâmetros, {2} em {3}. {4} respostas, {5:.1f} por minuto; a última levou {6:.1f} s. "
        "Temperatura {7}, {8} tentativas.",
        "unsupported": "(nada sustenta: {0})",
        "not taught": "(nada no catálogo se parece com isto: o modelo não aprendeu tal produto)",
    },
}


def language() -> str:
    """`pt` where the system speaks Portuguese, else `en`."""
    named = next(filter(None, map(os.environ.get, ("LC_ALL", "LC_MESSAGES", "LANG"))), None)
    return "pt" if (named or locale.getlocale()[0] or "").lower().startswith(("pt", "portug")) else "en"
